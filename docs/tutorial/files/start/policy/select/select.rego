# What is published: the catalogues that their team has agreed to, and the page.
package select

accept contains path if {
	some path, artifact in input.artifacts
	artifact.json.state == "agreed"
}

accept contains path if {
	some path, _ in input.artifacts
	endswith(path, ".md")
}
