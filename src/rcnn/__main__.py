"""`python -m rcnn`, and `torchrun -m rcnn`: the command line."""

from rcnn.cli.app import main

if __name__ == "__main__":
    main()
