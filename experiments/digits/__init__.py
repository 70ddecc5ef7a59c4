"""The job of this repository on 1,797 handwritten digits: `python experiments/digits/run.py`."""
