"""What an export puts beside weights that no class of transformers can load: never imported here.

These files are shipped as they are, to be run by whoever passes ``trust_remote_code``. They stand
alone: no flmgrow, nothing but torch and transformers.
"""
