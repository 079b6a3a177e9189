"""What people look at: pictures of a run's plan and records. Reads what a run leaves behind, never the trainer."""
