"""`scripts/simulate`: hand over to the simulator."""

from scripts.simulation.command import app

if __name__ == "__main__":
    app(prog_name="scripts/simulate")
