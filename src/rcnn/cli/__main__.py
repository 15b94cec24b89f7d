"""`python -m rcnn.cli`: the command line."""

from rcnn.cli.app import main

if __name__ == "__main__":
    main()
