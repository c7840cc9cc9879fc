"""`python -m simmim.check`: which images of a folder or of shards cannot be read, before a run."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("check")


if __name__ == "__main__":
    main()
