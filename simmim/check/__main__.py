"""`python -m simmim.check`: lists the images of a folder or of shards that cannot be read."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("check")


if __name__ == "__main__":
    main()
