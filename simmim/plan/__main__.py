"""`python -m simmim.plan`: what a run would take, without running it."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("plan")


if __name__ == "__main__":
    main()
