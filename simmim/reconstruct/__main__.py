"""`python -m simmim.reconstruct`: draws your images, masked and reconstructed by a model."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("reconstruct")


if __name__ == "__main__":
    main()
