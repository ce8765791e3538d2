"""The container's program: `python -m job`."""
