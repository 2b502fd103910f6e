"""`python -m gemma4_quant` is the same as `gemma4-quant`."""

from gemma4_quant.cli.main import main

if __name__ == "__main__":
    main()
