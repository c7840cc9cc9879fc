"""`python -m simmim.reconstruct`: your own pictures, what a model sees of them, what it fills in."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("reconstruct")


if __name__ == "__main__":
    main()
