"""What people look at: a run, a comparison or a sweep as one page that needs nothing else."""
