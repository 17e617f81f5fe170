"""Questions, splits and corpora: files and data sets to validated rows."""
