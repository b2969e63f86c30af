"""Programs that use Sandkeeper."""
