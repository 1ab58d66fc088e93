"""Annotations from elsewhere, and the parity set for other trainers."""
