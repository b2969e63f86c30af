"""The dashboard: pages of one installation for the person on call, rendered here."""

from .app import install

__all__ = ["install"]
