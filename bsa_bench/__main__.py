"""`python -m bsa_bench`."""

from bsa_bench.cli import main

if __name__ == "__main__":
    main()
