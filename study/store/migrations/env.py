"""Alembic's entry: runs on the connection that the store hands over."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table="agft_schema", render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
