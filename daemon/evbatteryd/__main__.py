"""``python -m evbatteryd``."""

from evbatteryd.cli import main

if __name__ == "__main__":
    main()
