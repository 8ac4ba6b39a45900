"""Entry point of `python -m colossal_llama NAME …`."""

from colossal_llama.commands import main

if __name__ == "__main__":
    main()
