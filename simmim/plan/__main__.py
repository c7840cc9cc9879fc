"""`python -m simmim.plan`: the memory and time that a run would need, without running it."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("plan")


if __name__ == "__main__":
    main()
