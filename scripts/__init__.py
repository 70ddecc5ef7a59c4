"""The programs; each is also run by its path: `python scripts/NAME.py`."""
