"""`python -m simmim.finetune`: supervised training, from a pretrained encoder or from scratch."""

from simmim.cli.main import run_command


def main() -> None:
    """Entry point."""
    run_command("finetune")


if __name__ == "__main__":
    main()
