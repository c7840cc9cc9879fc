"""`python -m simmim.pretrain`: SimMIM pretraining on unlabelled images."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("pretrain")


if __name__ == "__main__":
    main()
