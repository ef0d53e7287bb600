-- lose: the worker says itself that it is lost, as its engine has died: at once what the sweep would do later.
local id, token, why, innocent = unpack(ARGV, 3, 6)
write_even_when_full()
local now = clock()
note_death(token, now)
if lose(id, token, why, now, split(innocent)) then
  queue_up(id, again_lane(redis.call('HGET', key('record:' .. id), 'lane')), now)
end
