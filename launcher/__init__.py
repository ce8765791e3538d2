"""Submits runs to Kubernetes, tells how they are, and pulls what they made."""
