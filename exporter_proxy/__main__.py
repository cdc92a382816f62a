"""``python -m exporter_proxy`` is the same as the ``exporter_proxy`` command."""

import sys

from exporter_proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
