-- start: a prompt that had to wait until its worker was empty goes into the engine now. From here on its worker's
-- death counts.
local id, token = ARGV[3], ARGV[4]
write_even_when_full()
if redis.call('HEXISTS', key('record:' .. id), 'claim:' .. token) == 0 then return 0 end
redis.call('HSET', key('record:' .. id), 'alone:' .. token, 'running')
redis.call('DEL', key('waiting:' .. model_queue(redis.call('HGET', key('record:' .. id), 'lane'))))
return 1
