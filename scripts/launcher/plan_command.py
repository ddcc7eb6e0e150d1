"""`scripts/plan`: hand over to the planner."""

from scripts.planner.command import app

if __name__ == "__main__":
    app(prog_name="scripts/plan")
