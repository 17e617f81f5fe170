"""Reports: runs, comparisons and sweeps as pages in one file."""
