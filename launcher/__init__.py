"""From a config to one Job on Kubernetes, and from a run to its status, its log and its artifacts."""

from launcher.library import Launcher

__all__ = ["Launcher"]
