"""Bundle everything that an offline machine needs: runs, index, weights and wheels."""
