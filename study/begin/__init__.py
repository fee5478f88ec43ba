"""Beginning: shipped recipes, a first study file, the schema that editors read, and what every field means."""
