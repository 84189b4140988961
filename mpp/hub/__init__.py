"""From a run to the Hugging Face Hub: a folder that holds nothing local, and a push that can be repeated."""
