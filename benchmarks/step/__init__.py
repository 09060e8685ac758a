"""What a student's step costs: from a cache, as plain fine-tuning, and with live models."""
