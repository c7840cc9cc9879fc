"""`python -m simmim.evaluate`: evaluates a classifier, or a frozen encoder by k-NN or linear probe."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("evaluate")


if __name__ == "__main__":
    main()
