"""The core that turns prompts into answers, one request or many."""
