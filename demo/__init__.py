"""The job of this repository on 1,797 handwritten digits: `python demo/run.py`."""
