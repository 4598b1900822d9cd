import sys

from rga_fast.cli import main

sys.exit(main())
