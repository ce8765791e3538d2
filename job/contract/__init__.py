"""What the job, the launcher and whoever pulls artifacts agree on.

Every key, file name, exit code and JSON shape is written here once. Standard library, pydantic and YAML only; no I/O.
"""
