-- documented: the document names it; what is said in a chat changes nothing about it then.
ALTER TABLE home_channels ADD COLUMN documented boolean NOT NULL DEFAULT false;
