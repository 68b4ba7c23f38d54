"""``python -m bayes_bench`` is the command ``bayes-bench``."""

from bayes_bench.cli import main

if __name__ == "__main__":
    main()
