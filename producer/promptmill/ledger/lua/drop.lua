-- drop: Celery has stored the result of a plain call; its record has done its work.
write_even_when_full()
drop(ARGV[3])
