"""Trainings that are stopped and resumed with other workers, micro-batches and ranks, compared with unbroken ones."""
