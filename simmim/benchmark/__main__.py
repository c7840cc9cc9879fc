"""`python -m simmim.benchmark`: compares speed and memory with other implementations."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("benchmark")


if __name__ == "__main__":
    main()
