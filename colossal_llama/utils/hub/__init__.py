"""Models by name: repositories of the Hugging Face hub and of ModelScope as directories."""
