"""`quiet report RUN...`: one HTML file, nothing to load from elsewhere. Start with `build.report`."""
