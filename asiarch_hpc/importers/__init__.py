"""Published results of other systems as data: files in, `PublishedRun` out (issue: the audit of what was published)."""
