-- drop: Celery has stored the result of a plain call; its record has done its work.
drop(ARGV[3])
return 1
