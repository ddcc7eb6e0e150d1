"""`scripts/bench`: hand over to the benchmarks."""

from scripts.benchmark.command import app

if __name__ == "__main__":
    app(prog_name="scripts/bench")
