"""The parts of the doctor that know Celery, and the command."""
