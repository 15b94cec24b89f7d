"""`python -m rcnn`, and `torchrun -m rcnn`: the command line, which is run and not imported, as nothing may."""

from runpy import run_module

if __name__ == "__main__":
    run_module("rcnn.cli", run_name="__main__", alter_sys=True)
